"""The page at `/`: HTML, style and scripts that ask this server alone, and the routes that send them."""
