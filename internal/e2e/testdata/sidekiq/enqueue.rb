# Enqueues the jobs FROM, FROM+STEP, … below JOBS, RATE a second, and appends the number of each that Redis has acknowledged to ACKED. Started
# again, it goes on after the last of those. Every tenth job is scheduled for a moment later, every fiftieth for tomorrow.
require_relative "app"

from, step, jobs = %w[FROM STEP JOBS].map { |name| Integer(ENV.fetch(name)) }
pause = step / Float(ENV.fetch("RATE"))
acked = File.exist?(ENV.fetch("ACKED")) ? File.readlines(ENV.fetch("ACKED")).last.to_i : nil
due = Process.clock_gettime(Process::CLOCK_MONOTONIC)
File.open(ENV.fetch("ACKED"), "a") do |log|
  (acked ? acked + step : from).step(jobs - 1, step) do |n|
    order = n % 3 == 0 ? Order.set(queue: "critical") : Order
    if n % 50 == 3
      order.perform_in(86_400, n)
    elsif n % 10 == 4
      order.perform_in(1 + n % 7, n)
    else
      order.perform_async(n)
    end
    log.syswrite("#{n}\n")
    due += pause
    wait = due - Process.clock_gettime(Process::CLOCK_MONOTONIC)
    sleep wait if wait.positive?
  end
end
