# Runs at once what failed once and what is scheduled for the next minute, by Sidekiq's own means.
require_relative "app"
require "sidekiq/api"

Sidekiq::RetrySet.new.each { |job| job.retry if job.item["error_message"] == "once" }
Sidekiq::ScheduledSet.new.each { |job| job.add_to_queue if job.at < Time.now + 60 }
