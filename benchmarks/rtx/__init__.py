"""Engine files of TensorRT for RTX: builds on a machine without a GPU."""
