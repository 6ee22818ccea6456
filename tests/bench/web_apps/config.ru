# The hello of wsgi_app.py for Rack.
headers = { "content-type" => "text/plain", "content-length" => "13" }
run ->(_env) { [200, headers.dup, ["Hello, world!"]] }
