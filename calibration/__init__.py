"""What quantisation is made of: codes and scales, rotations, equalisation, and which linears it is for."""
