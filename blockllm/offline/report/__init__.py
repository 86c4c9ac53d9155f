"""`zoo report`: one static page of what a zoo shares, loses and costs."""
