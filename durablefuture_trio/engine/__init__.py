"""What happens next: pure decisions about one run. No input or output, no wall clock, no event loop."""
