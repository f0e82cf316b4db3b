"""Fleets of devices on one machine, with the deployed client and the deployed aggregator."""
