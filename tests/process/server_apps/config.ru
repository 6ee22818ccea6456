# The Rack app that the Ruby servers run in the tests: `/` says $MIDSTREAM_RELEASE, `/slow?ms=` waits.
RELEASE = ENV.fetch("MIDSTREAM_RELEASE", "?")
run lambda { |env|
  sleep(env["QUERY_STRING"][/ms=(\d+)/, 1].to_i / 1000.0) if env["PATH_INFO"] == "/slow"
  body = RELEASE + "\n"
  [200, { "content-type" => "text/plain", "content-length" => body.bytesize.to_s, "x-release" => RELEASE }, [body]]
}
