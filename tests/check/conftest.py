collect_ignore = ["corpus"]  # code to be read, not run
