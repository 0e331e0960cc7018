"""Speed against a stated floor: what the arithmetic alone costs, measured in the same run."""
