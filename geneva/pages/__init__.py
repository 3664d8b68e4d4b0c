"""What people see of the service in a browser: pages made on the server, without a build step."""
