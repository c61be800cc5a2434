"""The engine beside a plain loop, a training iteration in its parts, the policy step: what they cost on this machine.

Everything is measured in turn, pair by pair, and told as medians of paired ratios: machines are shared.
"""
