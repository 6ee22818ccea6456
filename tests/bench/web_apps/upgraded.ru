# upgraded_wsgi.py for Rack.
clock = -> { Process.clock_gettime(Process::CLOCK_PROCESS_CPUTIME_ID) }
stop = clock.call + 0.3
nil while clock.call < stop
version = File.read(File.join(__dir__, "VERSION")).strip
headers = { "content-type" => "text/plain", "content-length" => "6", "x-release" => version }
run lambda { |env|
  sleep 0.2 if env["PATH_INFO"] == "/slow"
  env["rack.input"].read
  [200, headers.dup, ["hello\n"]]
}
