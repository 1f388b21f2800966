"""The Python API: start runs, read their masks as arrays, convert them, and show them in a notebook.

```python
import ovseg_batch

run = ovseg_batch.run("photos", ["dog", "cat", "sofa: sofa, couch"], "out")
for image in run:
    for mask in image.masks:
        print(image.name, mask.label, mask.confidence, mask.array.sum())
```

The package `ovseg_batch` exports these names without importing a model library.
"""
