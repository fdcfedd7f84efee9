"""`qwen-image verify`: parity with the fp32 reference."""
