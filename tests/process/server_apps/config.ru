# The Rack app that the Ruby servers run in the tests: `/` says $MIDSTREAM_RELEASE, `/slow?ms=` waits,
# `/held?FILE` waits until that file is there.
RELEASE = ENV.fetch("MIDSTREAM_RELEASE", "?")
run lambda { |env|
  sleep(env["QUERY_STRING"][/ms=(\d+)/, 1].to_i / 1000.0) if env["PATH_INFO"] == "/slow"
  sleep 0.02 until File.exist?(env["QUERY_STRING"]) if env["PATH_INFO"] == "/held"
  body = RELEASE + "\n"
  [200, { "content-type" => "text/plain", "content-length" => body.bytesize.to_s, "x-release" => RELEASE }, [body]]
}
