"""The engine beside a plain loop: what it costs, what it saves, on this machine and model."""
