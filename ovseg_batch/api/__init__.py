"""Runs from Python: start one, read its masks as arrays, convert them, show them in a notebook.

```python
import ovseg_batch

run = ovseg_batch.run("photos", ["dog", "cat", "sofa: sofa, couch"], "out")
for image in run:
    for mask in image.masks:
        print(image.name, mask.label, mask.confidence, mask.array.sum())
```

The package `ovseg_batch` gives these names without importing a model library.
"""
