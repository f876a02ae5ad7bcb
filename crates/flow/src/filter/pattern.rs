//! Names with placeholders: pods, DNS names, nodes.

use regex::Regex;

/// `namespace/prefix`; either may be empty and then matches all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PodPattern {
    namespace: String,
    prefix: String,
}

impl PodPattern {
    /// `prefix` is in the namespace `default`, `/prefix` in any, `namespace/` is all of it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let (namespace, prefix) = text.split_once('/').unwrap_or(("default", text));
        if text.is_empty() || text == "/" {
            return Err("write [namespace/]prefix, namespace/ or /prefix".to_owned());
        }
        Ok(Self { namespace: namespace.to_owned(), prefix: prefix.to_owned() })
    }

    pub(super) fn matches(&self, (namespace, name): (&str, &str)) -> bool {
        (self.namespace.is_empty() || self.namespace == namespace) && name.starts_with(&self.prefix)
    }
}

/// Names of which one must match, `*` standing for any characters of a name.
#[derive(Clone, Debug)]
pub(super) struct NamePattern(Regex);

impl NamePattern {
    /// Patterns of DNS names. Case and a final dot do not count.
    pub(super) fn fqdns(patterns: &[String]) -> Result<Self, String> {
        let trimmed = patterns.iter().map(|pattern| pattern.trim_end_matches('.'));
        Self::compile(trimmed.map(translate).collect::<Result<Vec<_>, _>>()?)
    }

    /// Patterns of node names, `cluster/node`. Without a cluster it is `default`; an empty part
    /// stands for all.
    pub(super) fn nodes(patterns: &[String]) -> Result<Self, String> {
        let full = patterns.iter().map(|pattern| {
            if pattern.is_empty() || pattern == "/" {
                return Err("write a node's name, cluster/ or cluster/node".to_owned());
            }
            let (cluster, node) = pattern.split_once('/').unwrap_or(("default", pattern));
            let part = |part: &str| translate(if part.is_empty() { "*" } else { part });
            Ok(format!("{}/{}", part(cluster)?, part(node)?))
        });
        Self::compile(full.collect::<Result<Vec<_>, _>>()?)
    }

    fn compile(alternatives: Vec<String>) -> Result<Self, String> {
        let expression = format!("^(?:{})$", alternatives.join("|"));
        Regex::new(&expression).map(Self).map_err(|error| error.to_string())
    }

    pub(super) fn matches_fqdn(&self, name: &str) -> bool {
        self.0.is_match(&name.trim_end_matches('.').to_ascii_lowercase())
    }

    pub(super) fn matches_node(&self, name: &str) -> bool {
        let name = name.to_ascii_lowercase();
        !name.is_empty()
            && if name.contains('/') {
                self.0.is_match(&name)
            } else {
                self.0.is_match(&format!("default/{name}"))
            }
    }
}

/// A name with `*` as an expression. Other characters than those of names are refused.
fn translate(pattern: &str) -> Result<String, String> {
    if pattern.is_empty() {
        return Err("a name is empty".to_owned());
    }
    let mut expression = String::new();
    for character in pattern.chars() {
        match character.to_ascii_lowercase() {
            '*' => expression.push_str("[-_.0-9a-z]*"),
            '.' => expression.push_str("\\."),
            c @ ('a'..='z' | '0'..='9' | '-' | '_') => expression.push(c),
            other => {
                return Err(format!("{other:?} is in no name; only letters, digits, - _ . and *"));
            }
        }
    }
    Ok(expression)
}
