# to be filled in
