"""Authentication, permissions and revocation."""
