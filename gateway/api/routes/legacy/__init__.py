"""Legacy routes, for clients of earlier projects."""
