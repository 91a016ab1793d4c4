//! Completions and the manual page, made from the command line's own description.

use std::io::{self, Write};

use clap::CommandFactory;
use clap_complete::Shell;

use crate::args::Cli;
use crate::exit::{Exit, Failure};

/// Prints a completion script.
pub fn completions(shell: Shell) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "dlock", &mut script);
    print(&script)
}

/// Prints the manual page: the command, then each of its subcommands.
pub fn manual() -> Result<Exit, Failure> {
    let mut page = Vec::new();
    let command = Cli::command();
    let written = clap_mangen::Man::new(command.clone()).render(&mut page).and_then(|()| {
        command.get_subcommands().try_for_each(|one| {
            let man = clap_mangen::Man::new(one.clone());
            writeln!(page, ".SH \"DLOCK {}\"", one.get_name().to_uppercase())?;
            man.render_synopsis_section(&mut page)?;
            man.render_description_section(&mut page)?;
            man.render_options_section(&mut page)
        })
    });
    written.map_err(|error| Failure::from_error(Exit::CONFIGURATION, &error))?;
    print(&page)
}

fn print(text: &[u8]) -> Result<Exit, Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text).and_then(|()| out.flush()) {
        Ok(()) => Ok(Exit::OK),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Exit::OK),
        Err(error) => Err(Failure::from_error(Exit::CONFIGURATION, &error)),
    }
}
