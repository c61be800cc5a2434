"""What every room uses: the records that flow, errors, addressed randomness, worker threads, timers."""
