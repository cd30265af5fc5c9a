"""The model service: one app for listeners, speakers and answering models."""
