"""What to do about a failed image, for each reason."""

from __future__ import annotations

from ovseg_batch.errors import FailureCode

UPDATE = "`ovseg-batch run INPUT -o WORKDIR --update`"
ADVICE = {
    FailureCode.MISSING: f"Put the file back, then give `ovseg-batch retry`; or leave it out with {UPDATE}.",
    FailureCode.UNREADABLE: "Check the permissions and the disk or server of the file, then give `ovseg-batch retry`.",
    FailureCode.EMPTY: f"The file has no bytes. Copy it again, then give {UPDATE}.",
    FailureCode.NOT_AN_IMAGE: f"Replace the file by an image, or remove it from the input. Then give {UPDATE}.",
    FailureCode.TRUNCATED: f"The file ends early. Copy it again, then give {UPDATE}.",
    FailureCode.TOO_LARGE: "Raise run.max_pixels or run.max_file_bytes, or give a smaller image.",
    FailureCode.BAD_IMAGE: f"Save the image again with another program, then give {UPDATE}.",
    FailureCode.CHANGED: "The file changed during the run. Give `ovseg-batch retry`.",
    FailureCode.OUT_OF_MEMORY: "Give `ovseg-batch retry` on a device with more memory, or give a smaller image.",
    FailureCode.NO_EDIT: "Check edit.keep, edit.drop and the labels: the edit found nothing to do here.",
    FailureCode.BLOCKED: "The safety checker withheld the edited image. Use another prompt or another seed.",
    FailureCode.UNWRITABLE: "Choose another edit.format, or rename the image.",
    FailureCode.CRASHED: "The image crashes the worker. Save it again with another program; then retry.",
    FailureCode.UPSTREAM: "An earlier stage failed. Correct its cause, then give `ovseg-batch retry`.",
    FailureCode.MODEL: "The model failed on this image. Give `ovseg-batch retry`; try run.precision: fp32.",
    FailureCode.INTERNAL: "This is an error of the program. Please report it with the message.",
}
