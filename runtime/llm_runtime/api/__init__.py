"""HTTP. One thin module for each dialect:
it translates a body into a `Job` and a `Generation` into an answer."""
