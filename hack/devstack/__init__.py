"""What development, the tests and the demo run on: a cluster and the services beside it."""
