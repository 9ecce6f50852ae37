"""What the tests and the bench share: clients, a bad network, speech, a browser, servers to run against."""
