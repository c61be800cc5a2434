"""What the commands of `unmask` do that are no stages: decode, compare, promote, bench, doctor."""
