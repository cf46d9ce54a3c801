"""The specialist as it leaves the run folder."""
