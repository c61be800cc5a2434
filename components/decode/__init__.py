"""THE decode loop: jobs, the batch in flight, the readout, exact enumeration on tiny canvases."""
