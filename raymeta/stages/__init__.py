"""What a run does, one stage a file: each takes a run and gives what it found."""
