//! iPXE's script language, as far as scripts use it that boot machines: what iPXE of 2019 does with a
//! line, and no more. It splits lines at white space, has no quotes, and goes on after a failed
//! command only if `||` follows. A word that it does not know is an error, not passed over.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

/// What every script begins with.
const MAGIC: &[u8] = b"#!ipxe";

/// More steps than these go round in circles that nobody waits in.
const STEPS_MAX: usize = 10_000;

/// What a script acts upon.
pub trait Platform {
    /// A setting, such as `net0/mac`; empty if there is none.
    fn setting(&self, name: &str) -> String;
    /// Fetches a file. None: a silent server is waited for without end.
    fn fetch(&mut self, uri: &str, silence: Option<Duration>) -> Result<Vec<u8>>;
    /// Asks for an address (`ifconf -c dhcp`).
    fn configure(&mut self) -> Result<()>;
    /// Waits.
    fn sleep(&mut self, time: Duration);
}

/// A file that was fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// What it is called.
    pub name: String,
    /// Its octets.
    pub octets: Vec<u8>,
}

/// How a script ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// With a kernel.
    Boot {
        /// The kernel.
        kernel: Image,
        /// What else is in memory, in load order.
        initrds: Vec<Image>,
        /// The command line, the kernel's own name left out.
        args: Vec<String>,
    },
    /// With another loader.
    Loader(Image),
    /// With the local disk.
    Disk,
    /// Back in the firmware.
    Exit {
        /// Which takes it for a failure if it is not 0.
        code: i32,
    },
}

/// Whether a fetched file is a script.
pub fn is_script(octets: &[u8]) -> bool {
    octets.starts_with(MAGIC)
}

/// Runs a script to its end. An error says which command failed with nothing after it.
pub fn run(platform: &mut impl Platform, script: &[u8]) -> Result<End> {
    let mut run = Run {
        platform,
        images: Vec::new(),
        kernel: None,
        variables: HashMap::new(),
        steps: 0,
    };
    run.script(script)
}

struct Run<'a, P> {
    platform: &'a mut P,
    /// In the order in which they were fetched.
    images: Vec<Image>,
    /// Name and command line of the image that `boot` boots.
    kernel: Option<(String, Vec<String>)>,
    variables: HashMap<String, String>,
    steps: usize,
}

/// What a command leads to.
enum Step {
    Next,
    Goto(String),
    End(End),
    /// Another script takes the place of this one.
    Script(Vec<u8>),
}

impl<P: Platform> Run<'_, P> {
    fn script(&mut self, octets: &[u8]) -> Result<End> {
        let mut text = String::from_utf8(octets.to_vec()).context("a script that is no text")?;
        let mut at = 0;
        loop {
            self.steps += 1;
            if self.steps > STEPS_MAX {
                bail!("the script goes round in circles");
            }
            let Some(line) = text.lines().nth(at).map(str::to_owned) else {
                return Ok(End::Exit { code: 0 });
            };
            at += 1;
            if line.starts_with(':') {
                continue;
            }
            match self.line(&line).with_context(|| line.clone())? {
                Step::Next => {}
                Step::End(end) => return Ok(end),
                Step::Goto(label) => {
                    at = text
                        .lines()
                        .position(|line| is_label(line, &label))
                        .with_context(|| format!("no label {label}"))?;
                }
                Step::Script(next) => {
                    text = String::from_utf8(next).context("a script that is no text")?;
                    at = 0;
                }
            }
        }
    }

    /// One line: commands with `||`, `&&` and `;` between them.
    fn line(&mut self, line: &str) -> Result<Step> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let mut rest = words.as_slice();
        let mut wanted = true;
        let mut last: Result<()> = Ok(());
        loop {
            let ends = |word: &&str| matches!(*word, "||" | "&&" | ";") || word.starts_with('#');
            let count = rest.iter().position(ends).unwrap_or(rest.len());
            let (command, after) = rest.split_at(count);
            if wanted {
                match self.command(command) {
                    Ok(Step::Next) => last = Ok(()),
                    Ok(leaves) => return Ok(leaves),
                    Err(error) => last = Err(error),
                }
            }
            wanted = match after.first().copied() {
                Some("||") => last.is_err(),
                Some("&&") => last.is_ok(),
                Some(";") => true,
                _ => return last.map(|()| Step::Next),
            };
            rest = after.get(1..).unwrap_or_default();
        }
    }

    fn command(&mut self, words: &[&str]) -> Result<Step> {
        let words: Vec<String> = words.iter().map(|word| self.expand(word)).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let Some((name, arguments)) = words.split_first() else {
            return Ok(Step::Next);
        };
        match *name {
            "echo" | "imgstat" | "ifstat" | "route" | "show" => {}
            "goto" => return Ok(Step::Goto(one(arguments)?.to_owned())),
            "exit" => {
                let code = arguments.first().map_or(Ok(0), |code| code.parse());
                return Ok(Step::End(End::Exit {
                    code: code.context("an exit code")?,
                }));
            }
            "iseq" => match arguments {
                [one, other] if one == other => {}
                [_, _] => bail!("they differ"),
                _ => bail!("iseq compares two words"),
            },
            "isset" => {
                if one(arguments)?.is_empty() {
                    bail!("it is not set");
                }
            }
            "set" | "clear" => {
                let (variable, value) = arguments.split_first().context("set what?")?;
                self.variables
                    .insert((*variable).to_owned(), value.join(" "));
            }
            "inc" => {
                let (variable, by) = arguments.split_first().context("inc what?")?;
                let by: u64 = by
                    .first()
                    .map_or(Ok(1), |by| by.parse())
                    .context("a number")?;
                let value = self.value(variable).parse().unwrap_or(0_u64) + by;
                self.variables
                    .insert((*variable).to_owned(), value.to_string());
            }
            "sleep" => {
                let seconds = one(arguments)?.parse().context("seconds")?;
                self.platform.sleep(Duration::from_secs(seconds));
            }
            "imgfree" => match arguments {
                [] => {
                    self.images.clear();
                    self.kernel = None;
                }
                names => self
                    .images
                    .retain(|image| !names.contains(&image.name.as_str())),
            },
            "ifconf" | "dhcp" => {
                let known = |word: &&str| matches!(*word, "-c" | "--configurator" | "dhcp");
                if !arguments
                    .iter()
                    .all(|word| known(word) || word.starts_with("net"))
                {
                    bail!("ifconf does not know all of {arguments:?}");
                }
                self.platform.configure()?;
            }
            "sanboot" => return Ok(Step::End(End::Disk)),
            "imgfetch" | "module" | "initrd" => self.fetch(arguments).map(drop)?,
            "kernel" | "imgselect" => {
                let (name, args) = self.fetch(arguments)?;
                self.kernel = Some((name, args));
            }
            "imgargs" => {
                let (name, args) = arguments.split_first().context("imgargs of what?")?;
                let args = args.iter().map(|word| (*word).to_owned()).collect();
                self.kernel = Some(((*name).to_owned(), args));
            }
            "boot" | "imgexec" if arguments.is_empty() => return self.boot(),
            "chain" | "boot" | "imgexec" => return self.chain(arguments),
            unknown => bail!("iPXE has no command {unknown}"),
        }
        Ok(Step::Next)
    }

    /// Fetches an image; its name, and the words after its URI.
    fn fetch(&mut self, arguments: &[&str]) -> Result<(String, Vec<String>)> {
        let wanted = Wanted::read(arguments)?;
        let octets = self.platform.fetch(wanted.uri, wanted.silence)?;
        let path = wanted.uri.split('?').next().unwrap_or_default();
        let last = path.rsplit('/').next().unwrap_or_default();
        let name = wanted.name.unwrap_or(last).to_owned();
        self.images.push(Image {
            name: name.clone(),
            octets,
        });
        let args = wanted.rest.iter().map(|word| (*word).to_owned()).collect();
        Ok((name, args))
    }

    fn boot(&mut self) -> Result<Step> {
        let (name, args) = self.kernel.clone().context("no image is selected")?;
        let place = self.images.iter().position(|image| image.name == name);
        let place = place.with_context(|| format!("there is no image {name}"))?;
        let mut initrds = self.images.clone();
        let kernel = initrds.remove(place);
        Ok(Step::End(End::Boot {
            kernel,
            initrds,
            args,
        }))
    }

    fn chain(&mut self, arguments: &[&str]) -> Result<Step> {
        let wanted = Wanted::read(arguments)?;
        let octets = self.platform.fetch(wanted.uri, wanted.silence)?;
        let name = wanted.uri.to_owned();
        match (is_script(&octets), wanted.replaces) {
            (false, _) => Ok(Step::End(End::Loader(Image { name, octets }))),
            (true, true) => Ok(Step::Script(octets)),
            (true, false) => match self.script(&octets)? {
                End::Exit { code: 0 } => Ok(Step::Next),
                End::Exit { code } => Err(anyhow!("the script exits with {code}")),
                end => Ok(Step::End(end)),
            },
        }
    }

    /// Replaces each `${setting}` or `${setting:format}` of a word; what is not set is nothing.
    fn expand(&self, word: &str) -> String {
        let mut text = word.to_owned();
        // The innermost first, as iPXE does.
        while let Some(start) = text.rfind("${") {
            let Some(length) = text[start..].find('}') else {
                return text;
            };
            let value = self.value(&text[start + 2..start + length]);
            text.replace_range(start..=start + length, &value);
        }
        text
    }

    fn value(&self, setting: &str) -> String {
        let (name, format) = match setting.split_once(':') {
            Some((name, format)) => (name, format),
            None => (setting, ""),
        };
        let value = match self.variables.get(name) {
            Some(value) => value.clone(),
            None => self.platform.setting(name),
        };
        match format {
            "hexhyp" => value.replace(':', "-"),
            "hexraw" => value.replace(':', ""),
            _ => value,
        }
    }
}

/// What a command that fetches is told.
struct Wanted<'a> {
    uri: &'a str,
    name: Option<&'a str>,
    silence: Option<Duration>,
    replaces: bool,
    rest: &'a [&'a str],
}

impl<'a> Wanted<'a> {
    fn read(arguments: &'a [&'a str]) -> Result<Self> {
        let (mut name, mut silence, mut replaces) = (None, None, false);
        let mut at = 0;
        loop {
            let word = arguments.get(at).copied().context("no URI")?;
            let value = || {
                arguments
                    .get(at + 1)
                    .copied()
                    .context("an option without its value")
            };
            match word {
                "--name" | "-n" => name = Some(value()?),
                "--timeout" | "-t" => {
                    let millis = value()?.parse().context("a time in milliseconds")?;
                    silence = Some(Duration::from_millis(millis));
                }
                "--replace" | "-r" => replaces = true,
                "--autofree" | "-a" => {}
                option if option.starts_with('-') => bail!("iPXE does not know {option}"),
                "" => bail!("an empty URI"),
                uri => {
                    return Ok(Self {
                        uri,
                        name,
                        silence,
                        replaces,
                        rest: arguments.get(at + 1..).unwrap_or_default(),
                    });
                }
            }
            let takes_value = matches!(word, "--name" | "-n" | "--timeout" | "-t");
            at += if takes_value { 2 } else { 1 };
        }
    }
}

fn one<'a>(arguments: &[&'a str]) -> Result<&'a str> {
    match arguments {
        [] => Ok(""),
        [one] => Ok(one),
        _ => bail!("too many words: {arguments:?}"),
    }
}

fn is_label(line: &str, label: &str) -> bool {
    let name = line.strip_prefix(':').map(str::trim_end);
    name == Some(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files that there are, and what was done.
    #[derive(Default)]
    struct Fake {
        files: HashMap<&'static str, &'static str>,
        done: Vec<String>,
    }

    impl Platform for Fake {
        fn setting(&self, name: &str) -> String {
            match name {
                "netX/mac" => "52:54:00:00:00:50".to_owned(),
                "platform" => "pcbios".to_owned(),
                _ => String::new(),
            }
        }

        fn fetch(&mut self, uri: &str, silence: Option<Duration>) -> Result<Vec<u8>> {
            self.done.push(format!("{uri} {silence:?}"));
            let file = self.files.get(uri).context("silence")?;
            Ok(file.as_bytes().to_vec())
        }

        fn configure(&mut self) -> Result<()> {
            self.done.push("dhcp".to_owned());
            Ok(())
        }

        fn sleep(&mut self, time: Duration) {
            self.done.push(format!("{time:?}"));
        }
    }

    fn check(files: &[(&'static str, &'static str)], script: &str, end: &str, done: &[&str]) {
        let mut fake = Fake {
            files: files.iter().copied().collect(),
            ..Fake::default()
        };
        let ended = run(&mut fake, format!("#!ipxe\n{script}").as_bytes());
        assert_eq!(
            ended.map_or_else(|error| format!("{error:#}"), |end| format!("{end:?}")),
            end,
            "{script}"
        );
        assert_eq!(fake.done, done, "{script}");
    }

    #[test]
    fn a_fetch_that_fails_falls_back_and_one_that_does_not_jumps() {
        check(
            &[("b/k", "kernel"), ("b/i", "initrd")],
            "initrd --name i --timeout 4000 a/i && goto kernel ||\n\
             initrd --name i --timeout 4000 b/i && goto kernel ||\n\
             exit 1\n\
             :kernel\n\
             kernel b/k?x=1 quiet ||\n\
             kernel b/k quiet mac=${netX/mac:hexhyp} && goto boot ||\n\
             :boot\n\
             boot ||\n",
            "Boot { kernel: Image { name: \"k\", octets: [107, 101, 114, 110, 101, 108] }, \
             initrds: [Image { name: \"i\", octets: [105, 110, 105, 116, 114, 100] }], \
             args: [\"quiet\", \"mac=52-54-00-00-00-50\"] }",
            &["a/i Some(4s)", "b/i Some(4s)", "b/k?x=1 None", "b/k None"],
        );
    }

    #[test]
    fn a_command_that_fails_ends_the_script_unless_another_follows() {
        check(&[], "chain a\nsleep 1\n", "chain a: silence", &["a None"]);
        check(
            &[],
            "iseq ${platform} efi && goto firmware ||\nsanboot ||\n:firmware\nexit 1",
            "Disk",
            &[],
        );
        check(&[], "frob", "frob: iPXE has no command frob", &[]);
        check(&[], "goto nowhere ||", "no label nowhere", &[]);
    }

    #[test]
    fn a_script_takes_the_place_of_another() {
        check(
            &[("b", "#!ipxe\nsleep 3 ; exit 2"), ("c", "loader")],
            "ifconf -c dhcp ||\nchain --replace --autofree b ||\nexit 1\n",
            "Exit { code: 2 }",
            &["dhcp", "b None", "3s"],
        );
        check(
            &[("c", "c")],
            "chain c",
            "Loader(Image { name: \"c\", octets: [99] })",
            &["c None"],
        );
        check(&[], ":a\ngoto a", "the script goes round in circles", &[]);
    }
}
