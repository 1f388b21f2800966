"""Errors of alpha mattes and images."""

from __future__ import annotations

import cv2
import numpy as np

from ovseg_batch.types.arrays import Doubles, Mask, Numbers, Pixels

GRADIENT_SIGMA = 1.4
BACKGROUNDS = (0.0, 0.5, 1.0)
SSIM_SIGMA, SSIM_RADIUS, K1, K2 = 1.5, 5, 0.01, 0.03


def alpha_errors(alpha: Numbers, truth: Numbers) -> dict[str, float]:
    """Compute the errors of Rhemann et al., A Perceptually Motivated Online Benchmark for Image Matting, CVPR 2009.

    Args:
        alpha, truth: (H, W) float in [0, 1].

    Returns:
        SAD: sum of absolute differences / 1000. MSE: mean squared difference × 1000. gradient: sum of squared
        differences between the lengths of the gradients (of Gaussians, σ = 1.4) / 1000.
    """
    apart = alpha.astype(np.float64) - truth
    slopes = _slope(alpha) - _slope(truth)
    return {
        "SAD": float(np.abs(apart).sum() / 1000),
        "MSE": float((apart**2).mean() * 1000),
        "gradient": float((slopes**2).sum() / 1000),
    }


def _slope(alpha: Numbers) -> Doubles:
    radius = int(np.ceil(3 * GRADIENT_SIGMA))
    x = np.arange(-radius, radius + 1)
    gauss = np.exp(-(x**2) / (2 * GRADIENT_SIGMA**2)) / (GRADIENT_SIGMA * np.sqrt(2 * np.pi))
    derivative = -x * gauss / GRADIENT_SIGMA**2
    norm = np.sqrt((np.outer(derivative, gauss) ** 2).sum())
    single = alpha.astype(np.float64)
    parts = [
        cv2.sepFilter2D(single, -1, *kernels, borderType=cv2.BORDER_REPLICATE) / norm
        for kernels in ((derivative, gauss), (gauss, derivative))
    ]
    return np.asarray(np.hypot(*parts))


def composite_error(colours: Numbers, alpha: Numbers, true_light: Numbers, true_alpha: Numbers) -> float:
    """Return the mean squared error × 1000 of a cut-out on black, grey and white, compared with the true one.

    Args:
        colours: (H, W, 3) float in [0, 1], not multiplied by alpha.
        alpha, true_alpha: (H, W) float in [0, 1].
        true_light: (H, W, 3) float in [0, 1], true foreground multiplied by its alpha.
    """
    ours, theirs = colours * alpha[..., None], true_light
    gap = (true_alpha - alpha)[..., None]
    return float(np.mean([((ours - theirs + gap * shade) ** 2).mean() for shade in BACKGROUNDS]) * 1000)


def psnr(image: Pixels, truth: Pixels, where: Mask | None = None) -> float:
    """Return the peak signal-to-noise ratio in dB of 8-bit images (H, W, 3), over the pixels of `where` (H, W)."""
    apart = image.astype(np.float64) - truth
    error = float(np.square(apart if where is None else apart[where]).mean())
    return float("inf") if error == 0 else 10 * float(np.log10(255**2 / error))


def ssim(image: Pixels, truth: Pixels, where: Mask | None = None) -> float:
    """Return the mean structural similarity of 8-bit images (H, W, 3), averaged over channels.

    Source: Wang et al., Image Quality Assessment: From Error Visibility to Structural Similarity, 2004, with σ = 1.5.
    """
    x, y = image.astype(np.float64), truth.astype(np.float64)

    def mean(values: Doubles) -> Doubles:
        size = (2 * SSIM_RADIUS + 1,) * 2
        return np.asarray(cv2.GaussianBlur(values, size, SSIM_SIGMA, borderType=cv2.BORDER_REFLECT))

    mx, my = mean(x), mean(y)
    xx, yy, xy = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    c1, c2 = (K1 * 255) ** 2, (K2 * 255) ** 2
    found = ((2 * mx * my + c1) * (2 * xy + c2)) / ((mx * mx + my * my + c1) * (xx + yy + c2))
    return float((found if where is None else found[where]).mean())
