"""`/auth`: logging in and out, second factors, passwords, one's own sessions. JSON for tools and for the dashboard alike."""
