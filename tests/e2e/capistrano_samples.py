"""Projects that are deployed with Capistrano, as teams write them: name -> {path: text}."""

# ruff: noqa: E501 (a file is one string)

from __future__ import annotations

SETUP = """\
require "capistrano/setup"
require "capistrano/deploy"
require "capistrano/scm/git"
install_plugin Capistrano::SCM::Git
"""
IMPORT = 'Dir.glob("lib/capistrano/tasks/*.rake").each { |r| import r }\n'

RAILS = {
    "Capfile": SETUP
    + """\
require "capistrano/rbenv"
require "capistrano/rails"
require "capistrano/puma"
install_plugin Capistrano::Puma
require "capistrano/sidekiq"
install_plugin Capistrano::Sidekiq
install_plugin Capistrano::Sidekiq::Systemd
require "whenever/capistrano"
require "slackistrano/capistrano"
"""
    + IMPORT,
    "config/deploy.rb": """\
# config valid for current version and patch releases of Capistrano
lock "~> 3.17"

set :application, "blog"
set :repo_url, "git@example.com:team/blog.git"
set :deploy_to, "/srv/blog"
set :branch, ENV["REVISION"] || ENV["BRANCH"] || "main"

set :rbenv_type, :user
set :rbenv_ruby, File.read(".ruby-version").strip
set :keep_releases, 3
set :format_options, command_output: true, log_file: "log/capistrano.log", color: :auto, truncate: :auto
set :local_user, -> { `git config user.name`.chomp }

append :linked_files, "config/database.yml", 'config/master.key'
append :linked_dirs, "log", "tmp/pids", "tmp/cache", "tmp/sockets", "public/uploads",
  "storage"

set :default_env, {
  "RAILS_LOG_TO_STDOUT" => "1",
  path: "/opt/node/bin:$PATH",
  malloc_arena_max: 2,
  SMTP_PASSWORD: ENV.fetch("SMTP_PASSWORD"),
}

set :puma_threads, [5, 5]
set :puma_workers, 2
set :puma_bind, "unix://#{shared_path}/tmp/sockets/puma.sock"
set :puma_phased_restart, true
set :sidekiq_config, "config/sidekiq.yml"
set :sidekiq_roles, :worker
set :whenever_identifier, -> { "#{fetch(:application)}_#{fetch(:stage)}" }
set :slackistrano, { channel: "#deploys", webhook: "https://hooks.example.com/T0/B0/abc" }

namespace :deploy do
  desc "Clear the cache"
  task :clear_cache do
    on roles(:app), in: :groups, limit: 3, wait: 10 do
      within release_path do
        with rails_env: fetch(:rails_env) do
          execute :rake, "cache:clear"
        end
      end
    end
  end

  desc "Warm the pages up"
  task :warm do
    on primary(:web) do |host|
      if test("curl -fsS http://#{host.hostname}/")
        info "warm"
      end
    end
  end

  after :published, :clear_cache
  after :finishing, "deploy:cleanup"
end

after "deploy:published", "sidekiq:restart"
after "deploy:finished", "deploy:warm"
""",
    "config/deploy/production.rb": """\
server "app1.example.com", user: "deploy", roles: %w{app web}
server "app2.example.com", user: "deploy", roles: %w{app web}, port: 2222
server "jobs1.example.com", user: "deploy", roles: %w{app db worker}, primary: true, ssh_options: {
  keys: %w(~/.ssh/id_jobs), forward_agent: false, auth_methods: %w(publickey)
}
""",
    "config/deploy/staging.rb": """\
set :branch, "develop"
set :rails_env, "staging"
set :deploy_to, "/srv/blog-staging"
set :puma_workers, 1
role :app, %w{deploy@staging.example.com}
role :web, %w{deploy@staging.example.com}
role :db,  %w{deploy@staging.example.com}
role :worker, %w{deploy@staging.example.com}
""",
    ".ruby-version": "3.2.2\n",
    "Gemfile": 'source "https://rubygems.org"\ngem "rails"\ngem "puma"\ngem "sidekiq"\n',
    "Gemfile.lock": "GEM\n  specs:\n    puma (6.4.0)\n    rails (7.1.0)\n    sidekiq (7.2.0)\n",
    "config.ru": 'require_relative "config/environment"\nrun Rails.application\n',
    "config/application.rb": "module Blog; class Application < Rails::Application; end; end\n",
    "config/routes.rb": 'Rails.application.routes.draw { get "/up", to: "health#show" }\n',
    "config/puma.rb": "threads 5, 5\n",
    "config/sidekiq.yml": ":concurrency: 5\n",
    "db/migrate/1_first.rb": "",
}

STATIC = {
    "Capfile": SETUP,
    "config/deploy.rb": """\
set :application, 'site'
set :repo_url, 'https://example.com/site.git'
set :keep_releases, 10
set :log_level, :info
""",
    "config/deploy/production.rb": """\
server 'www.example.com', :user => 'www-data', :roles => [:web]
""",
    "index.html": "<p>hello</p>\n",
}

MULTISTAGE = {
    "Capfile": SETUP + 'require "capistrano/npm"\n' + IMPORT,
    "config/deploy.rb": """\
set :application, "api"
set :repo_url, "ssh://git@example.com:2200/api.git"
set :deploy_to, -> { "/opt/#{fetch(:application)}/#{fetch(:stage)}" }
set :user, "api"
set :npm_flags, "--omit=dev --silent"
set :linked_files, fetch(:linked_files, []).push(".env")
set :linked_dirs, %w[node_modules uploads] + ["log"]
set :env_name, fetch(:stage) == :production ? "live" : "try"
set :default_env, -> { { "NODE_ENV" => fetch(:env_name), "ROOT" => "#{shared_path}/uploads", "CODE" => release_path } }
%w[a b].each { |n| append :linked_dirs, "data/#{n}" }

if fetch(:stage) == :production
  set :keep_releases, 7
else
  set :keep_releases, 2
end

task :restart_api do
  on roles(:app) do
    execute :sudo, :systemctl, :restart, "api-#{fetch(:stage)}"
  end
end
after "deploy:publishing", :restart_api
""",
    **{
        f"config/deploy/{stage}.rb": f'set :branch, "{branch}"\nserver "{stage}.example.com", user: fetch(:user), roles: %w[app web]\n'
        for stage, branch in (("production", "main"), ("staging", "main"), ("review_app", "develop"))
    },
    "package.json": '{"name": "api", "scripts": {"start": "node server.js"}}\n',
    "server.js": "require('http').createServer((q, s) => s.end('x')).listen({ fd: 3 })\n",
}

CUSTOM = {
    "Capfile": SETUP
    + """\
require 'capistrano/rvm'
require 'capistrano/bundler'
require 'capistrano3/unicorn'
require "capistrano/maintenance"
Rake::Task["deploy:check"].clear_actions
"""
    + IMPORT,
    "config/deploy.rb": """\
lock '3.17.2'
set :application, 'intra.net'
set :repo_url, 'git@example.com:intra.git'
set :scm, :git
set :pty, true
set :ssh_options, auth_methods: ['publickey'],
                  keys: ['~/.ssh/intra.pem'], verify_host_key: :never
set :rvm_type, :system
set :rvm_ruby_version, 'ruby-2.7.8@intra'
set :bundle_without, %w{development test ci}.join(' ')
set :unicorn_config_path, -> { "#{current_path}/config/unicorn/production.rb" }
set :unicorn_pid, -> { "#{shared_path}/tmp/pids/unicorn.pid" }
set :db_password, "hunter2"
fetch(:default_env).merge!(rails_env: 'production', rack_env: 'production')
set :linked_dirs, fetch(:linked_dirs, []) << "log"
ask :branch, `git rev-parse --abbrev-ref HEAD`.chomp
ask(:otp, nil, echo: false)
SSHKit.config.command_map[:rake] = "bundle exec rake"

def notify(text)
  puts text if ENV["NOTIFY"]
end

case fetch(:stage)
when :production then set :x, 1
end

namespace :deploy do
  task :restart do
    on roles(:app), in: :sequence, wait: 5 do
      invoke "unicorn:restart"
    end
  end
  after :publishing, :restart
  before :starting, :announce do
    run_locally do
      execute "say deploying"
    end
  end
  after :restart, :touch_cache do
    on roles(:web) do
      execute "touch #{shared_path}/cache.stamp && echo done", raise_on_non_zero_exit: false
    end
  end
end

desc <<~TEXT
  Back up
TEXT
task :backup => "deploy:check" do |t, args|
  on primary :db do
    download! "#{shared_path}/dump", "dump"
  end
end
""",
    "config/deploy/production.rb": """\
%w{10.0.0.1 10.0.0.2}.each do |ip|
  server ip, user: 'intra', roles: %w{app web}
end
server '10.0.0.3', user: 'intra', roles: [:db], no_release: true
server "[fd00::1]", user: "intra", roles: %w[app]
""",
    "lib/capistrano/tasks/logs.rake": """\
namespace :logs do
  desc 'Tail the logs'
  task :tail do
    on roles(:app) do
      execute :tail, '-n 100', "#{shared_path}/log/production.log"
    end
  end
end
""",
    "Gemfile": 'gem "unicorn"\ngem "sinatra"\n',
    "config.ru": "run App\n",
    "config/unicorn/production.rb": 'worker_processes 2\nlisten "/run/intra/unicorn.sock", backlog: 64\n',
}

PHP = {
    "Capfile": SETUP + 'require "capistrano/composer"\nrequire "capistrano/yarn"\nrequire "capistrano/passenger"\n',
    "config/deploy.rb": """\
set :application, "wiki"
set :repo_url, "git@example.com:wiki.git"
set :repo_tree, "app"
set :git_shallow_clone, 1
set :composer_install_flags, '--no-dev --no-interaction --optimize-autoloader'
set :linked_dirs, ["var", "var/log"]
set :linked_files, [".env", "/etc/passwd", "../x"]
append :linked_dirs, "web/files"
remove :linked_dirs, "nothing"
""",
    "config/deploy/production.rb": 'server "localhost", roles: :all\n',
}

SAMPLES = {"rails": RAILS, "static": STATIC, "multistage": MULTISTAGE, "custom": CUSTOM, "php": PHP}
