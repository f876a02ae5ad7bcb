//! The log file, where the configuration names one: a line per command, since what the runtime
//! does with the errors it reads is the runtime's affair.

use std::fs::File;
use std::io::Write;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::error::Error;
use crate::request::{Command, Request};

/// Runs a command and logs how it went. A log that cannot be written fails nothing.
pub(crate) fn logged<T>(
    request: &Request,
    run: impl FnOnce(&Request) -> Result<T, Error>,
) -> Result<T, Error> {
    let started = Instant::now();
    let outcome = run(request);
    let Some(path) = &request.conf.log_file else { return outcome };
    let result = match &outcome {
        Ok(_) if request.conf.enable_debug || changes_something(&request.command) => {
            "ok".to_owned()
        }
        Ok(_) => return outcome,
        Err(error) => error.to_string(),
    };
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let line = format!(
        "{}.{:03} {} {:?} ms={:.1}\n",
        time.as_secs(),
        time.subsec_millis(),
        describe(&request.command),
        result,
        started.elapsed().as_secs_f64() * 1000.0,
    );
    if let Ok(mut file) = File::options().create(true).append(true).open(path) {
        // One write: lines of plugins that run at the same time do not mix.
        let _ = file.write_all(line.as_bytes());
    }
    outcome
}

fn changes_something(command: &Command) -> bool {
    matches!(command, Command::Add { .. } | Command::Del { .. } | Command::Gc)
}

fn describe(command: &Command) -> String {
    match command {
        Command::Add { sandbox, pod } => format!(
            "ADD container={} ifname={} netns={} pod={}/{}",
            sandbox.attachment.container_id,
            sandbox.attachment.ifname,
            sandbox.netns.display(),
            pod.namespace,
            pod.name
        ),
        Command::Del { attachment } => {
            format!("DEL container={} ifname={}", attachment.container_id, attachment.ifname)
        }
        Command::Check { sandbox } => format!(
            "CHECK container={} ifname={}",
            sandbox.attachment.container_id, sandbox.attachment.ifname
        ),
        Command::Gc => "GC".to_owned(),
        Command::Status => "STATUS".to_owned(),
        Command::Version => "VERSION".to_owned(),
    }
}
