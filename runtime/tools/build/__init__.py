"""`qwen-image build`: shapes, checks, records and the folder of plans."""
