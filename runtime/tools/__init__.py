"""Tools around the lean runtime: build, bench, compare, report. Drawing a picture needs none of them."""
