# A small application on Sidekiq for the test of a cutover. Workers: sidekiq -r app.rb. What has been done stands in a file outside of
# Redis (LEDGER), a line for each job that ended well, appended in one write.
require "sidekiq"

Redis.sadd_returns_boolean = false # it warns at each job otherwise

# Tells a job whether it is tried for the first time.
class Attempts
  def call(_worker, job, _queue)
    Thread.current[:first] = !job.key?("retry_count")
    yield
  end
end

Sidekiq.configure_server do |config|
  config.options[:poll_interval_average] = 1 # seconds; also, the first look at the scheduled jobs needn't wait
  config.server_middleware { |chain| chain.add(Attempts) }
  config.logger.level = Logger::WARN
end

class Order
  include Sidekiq::Worker
  sidekiq_options retry: 5
  sidekiq_retry_in { |_count, error| error.message == "later" ? 3600 : 1 }

  # Job n does its work, but: n % 20 == 1 fails the first time; n % 100 == 7 fails, to be tried again in an hour.
  def perform(n)
    raise "later" if n % 100 == 7
    raise "once" if n % 20 == 1 && Thread.current[:first]
    sleep 0.002
    File.open(ENV.fetch("LEDGER"), "a") { |f| f.syswrite("#{n}\n") }
  end
end
