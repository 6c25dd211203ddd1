"""What tests share: an oracle, a tiny model, and ranks to run it on."""
