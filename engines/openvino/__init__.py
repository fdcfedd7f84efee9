"""The OpenVINO backends, on CPUs."""
