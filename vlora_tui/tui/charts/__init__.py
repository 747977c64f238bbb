"""The plots of variance against k and of size against error."""
