"""The pages of the service in a browser: made on the server, without a build step."""
