"""The TensorRT backend at run time: loading, refitting, binding and execution of plans, and the loop on the device."""
