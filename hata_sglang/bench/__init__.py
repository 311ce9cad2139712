"""``hata-sglang bench``: how fast a sparse layer, and a server, are beside their dense peers."""
