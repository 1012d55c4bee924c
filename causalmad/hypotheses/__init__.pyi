from .donors import Donors as Donors
