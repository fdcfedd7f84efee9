"""`qwen-image inspect --kernels`: the kernels of a bundle's plans, their traffic, and a card's limits."""
