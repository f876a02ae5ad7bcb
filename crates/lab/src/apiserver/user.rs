//! Who sends a request: names, groups, and how they are read from a client's certificate.

use std::collections::BTreeMap;

use http::HeaderMap;
use serde_json::{Value, json};

use super::request::decode;

/// May do everything, whatever roles say.
pub(super) const MASTERS: &str = "system:masters";
/// Everybody who has shown who they are.
pub(super) const AUTHENTICATED: &str = "system:authenticated";
const UNAUTHENTICATED: &str = "system:unauthenticated";
/// Every service account is in this group, and in one of its namespace below this name.
const SERVICE_ACCOUNTS: &str = "system:serviceaccounts";

/// The sender of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// Somebody who has shown who they are.
    pub fn new(name: &str, groups: &[&str]) -> Self {
        let mut user = Self { name: name.to_owned(), ..Self::default() };
        user.groups = groups.iter().map(|&group| group.to_owned()).collect();
        user.authenticated()
    }

    /// Who may do everything.
    pub(super) fn administrator() -> Self {
        Self::new("kubernetes-admin", &[MASTERS])
    }

    /// Who says nothing about themselves.
    pub(super) fn anonymous() -> Self {
        let groups = vec![UNAUTHENTICATED.to_owned()];
        Self { name: "system:anonymous".into(), groups, ..Self::default() }
    }

    /// A program that runs as a service account.
    pub fn of_service_account(namespace: &str, name: &str, uid: &str) -> Self {
        let of_namespace = format!("{SERVICE_ACCOUNTS}:{namespace}");
        let mut user =
            Self::new(&service_account_name(namespace, name), &[SERVICE_ACCOUNTS, &of_namespace]);
        user.uid = uid.to_owned();
        user
    }

    /// The subject of a certificate (DER): the common name, and organisations as groups.
    /// That our authority made it has been verified before.
    pub(super) fn of_certificate(certificate: &[u8]) -> Option<Self> {
        let (name, groups) = subject(certificate)?;
        let user = Self { name, groups, ..Self::default() };
        Some(user.authenticated())
    }

    fn authenticated(mut self) -> Self {
        if !self.groups.iter().any(|group| group == AUTHENTICATED) {
            self.groups.push(AUTHENTICATED.to_owned());
        }
        self
    }

    pub(super) fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|one| one == group)
    }

    /// `userInfo` of reviews.
    pub(super) fn to_json(&self) -> Value {
        let mut info = json!({ "username": self.name, "groups": self.groups });
        if !self.uid.is_empty() {
            info["uid"] = json!(self.uid);
        }
        if !self.extra.is_empty() {
            info["extra"] = json!(self.extra);
        }
        info
    }

    /// `userInfo` or the specification of an access review, read back.
    pub(super) fn from_json(info: &Value) -> Self {
        let list = |value: &Value| -> Vec<String> {
            let items = value.as_array().into_iter().flatten();
            items.filter_map(|one| one.as_str().map(str::to_owned)).collect()
        };
        let name = info["user"].as_str().or(info["username"].as_str()).unwrap_or_default();
        let extra = info["extra"].as_object().into_iter().flatten();
        Self {
            name: name.to_owned(),
            uid: info["uid"].as_str().unwrap_or_default().to_owned(),
            groups: list(&info["groups"]),
            extra: extra.map(|(key, values)| (key.clone(), list(values))).collect(),
        }
    }

    /// As whom the request is to be handled, if its headers say (`kubectl --as`).
    pub(super) fn impersonated(headers: &HeaderMap) -> Option<Self> {
        let texts = |name: &str| -> Vec<String> {
            let all = headers.get_all(name).iter();
            all.filter_map(|value| value.to_str().ok().map(str::to_owned)).collect()
        };
        let name = texts("impersonate-user").into_iter().next();
        let mut user = Self { groups: texts("impersonate-group"), ..Self::default() };
        user.uid = texts("impersonate-uid").into_iter().next().unwrap_or_default();
        for key in headers.keys() {
            if let Some(key) = key.as_str().strip_prefix("impersonate-extra-") {
                let values = texts(&format!("impersonate-extra-{key}"));
                user.extra.insert(decode(key), values);
            }
        }
        if name.is_none() && user == Self::default() {
            return None;
        }
        user.name = name.unwrap_or_default();
        Some(user)
    }

    /// The groups that come with the name itself, unless others were asked for.
    pub(super) fn with_own_groups(mut self) -> Self {
        if self.groups.is_empty()
            && let Some((namespace, _)) = self.service_account()
        {
            let of_namespace = format!("{SERVICE_ACCOUNTS}:{namespace}");
            self.groups = vec![SERVICE_ACCOUNTS.to_owned(), of_namespace];
        }
        if self.name == "system:anonymous" {
            self.groups.push(UNAUTHENTICATED.to_owned());
            return self;
        }
        self.authenticated()
    }

    /// Namespace and name of the service account that this is.
    pub(super) fn service_account(&self) -> Option<(&str, &str)> {
        self.name.strip_prefix("system:serviceaccount:")?.split_once(':')
    }
}

/// What a service account is called as a user.
pub(super) fn service_account_name(namespace: &str, name: &str) -> String {
    format!("system:serviceaccount:{namespace}:{name}")
}

const SEQUENCE: u8 = 0x30;
const OBJECT_IDENTIFIER: u8 = 0x06;
/// The explicit tag of a certificate's version.
const VERSION: u8 = 0xa0;
/// Attribute types of X.520: 2.5.4.3 and 2.5.4.10.
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
const ORGANIZATION: &[u8] = &[0x55, 0x04, 0x0a];

/// Common name and organisations of a certificate's subject (RFC 5280, section 4.1).
fn subject(certificate: &[u8]) -> Option<(String, Vec<String>)> {
    let mut outer = certificate;
    let mut certificate = element(&mut outer)?.1;
    let mut fields = element(&mut certificate)?.1;
    if fields.first() == Some(&VERSION) {
        element(&mut fields)?;
    }
    for _serial_algorithm_issuer_validity in 0..4 {
        element(&mut fields)?;
    }
    let (tag, mut names) = element(&mut fields)?;
    if tag != SEQUENCE {
        return None;
    }
    let (mut common_name, mut organizations) = (String::new(), Vec::new());
    while !names.is_empty() {
        let mut set = element(&mut names)?.1;
        while !set.is_empty() {
            let mut attribute = element(&mut set)?.1;
            let (tag, kind) = element(&mut attribute)?;
            let text = String::from_utf8_lossy(element(&mut attribute)?.1).into_owned();
            match (tag, kind) {
                (OBJECT_IDENTIFIER, COMMON_NAME) => common_name = text,
                (OBJECT_IDENTIFIER, ORGANIZATION) => organizations.push(text),
                _ => {}
            }
        }
    }
    (!common_name.is_empty()).then_some((common_name, organizations))
}

/// The next element of DER: its tag and content.
fn element<'a>(bytes: &mut &'a [u8]) -> Option<(u8, &'a [u8])> {
    let [tag, len, rest @ ..] = *bytes else { return None };
    let (len, rest) = match usize::from(*len) {
        short @ 0..=0x7f => (short, rest),
        long => {
            let (digits, rest) = rest.split_at_checked(long & 0x7f)?;
            if digits.len() > 4 {
                return None;
            }
            (digits.iter().fold(0, |len, digit| len << 8 | usize::from(*digit)), rest)
        }
    };
    let (content, rest) = rest.split_at_checked(len)?;
    *bytes = rest;
    Some((*tag, content))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apiserver::tls::Credentials;
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject as _;

    #[test]
    fn a_certificate_says_who_it_is() {
        let credentials = Credentials::generate().unwrap();
        let (certificate, _key) = credentials.client("jane", Some("dev")).unwrap();
        let der = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
        let user = User::of_certificate(&der).unwrap();
        assert_eq!(user, User::new("jane", &["dev"]));
        assert_eq!(user.groups, ["dev", "system:authenticated"]);
        for cut in 0..der.len() {
            // Never a panic, whatever arrives.
            let _ = User::of_certificate(&der[..cut]);
        }
    }

    #[test]
    fn a_service_account_has_its_groups() {
        let user = User::of_service_account("ns", "robot", "u");
        assert_eq!(user.service_account(), Some(("ns", "robot")));
        let groups = ["system:serviceaccounts", "system:serviceaccounts:ns", AUTHENTICATED];
        assert_eq!(user.groups, groups);
        let mut headers = HeaderMap::new();
        assert_eq!(User::impersonated(&headers), None);
        headers.insert("impersonate-user", "system:serviceaccount:ns:robot".parse().unwrap());
        headers.insert("impersonate-uid", "u".parse().unwrap());
        assert_eq!(User::impersonated(&headers).unwrap().with_own_groups(), user);
    }
}
