"""Tools around the lean runtime: build, bench, compare, report. Drawing needs none of them."""
