"""TensorRT plans at run time: loading, refitting, binding, execution, the loop on the device."""
